"""The tab that says how a program asks for pictures."""

import json
import re
import shlex

import gradio as gr

from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.web.make_tab import Server

_HERE = "http://127.0.0.1:7860"
_TEXT = """### Pictures for programs

The endpoint has the form of OpenAI's images endpoint. The same prompt, settings and seed give the same
picture.

```sh
curl -s {root}/v1/images/generations \\
  -H 'Content-Type: application/json' \\{curl_token}
  -d {body}
```

```python
import base64, json, os, urllib.request

body = json.dumps({{"prompt": {prompt}, "n": 2, "seed": 7}}).encode()
headers = {{"Content-Type": "application/json"{python_token}}}
request = urllib.request.Request("{root}/v1/images/generations", body, headers)
for picture in json.load(urllib.request.urlopen(request))["data"]:
    with open(f"{{picture['seed']}}.png", "wb") as file:
        file.write(base64.b64decode(picture["b64_json"]))
```

| Field | |
|---|---|
| `prompt` | what the pictures are to show, at most {limits.prompt:,} characters |
| `n` | 1 to {limits.images} pictures; each has the seed after the one before |
| `seed` | seed of the first; drawn if left out, and told in the answer |
| `steps` | 1 to {limits.steps} |
| `guidance` | 0 to {limits.guidance:g}; 1 is off |
| `sampler`, `negative_prompt`, `model` | the model's own, none, and the first model if left out |

`GET /v1/models` lists the models and their own settings, `GET /healthz` says whether the server works, and
[`/openapi.json`](/openapi.json) describes all of it. When {limits.queue} requests wait, the next is answered
with 429 and the seconds after which to try again.
"""


def build_api_tab(server: Server) -> None:
    """The tab's text, with the address under which the visitor sees the page."""
    first = next(iter(server.models.values()))
    prompt = json.dumps(prompts_to_try(first.generator.trained_on)[0])
    body = shlex.quote(f'{{"prompt": {prompt}, "n": 2, "seed": 7}}')
    curl, python = "", ""
    if server.has_token:
        curl = '\n  -H "Authorization: Bearer $KILOPIX_TOKEN" \\'
        python = ', "Authorization": "Bearer " + os.environ["KILOPIX_TOKEN"]'

    def text(root: str) -> str:
        return _TEXT.format(
            root=root, prompt=prompt, body=body, limits=server.limits, curl_token=curl, python_token=python
        )

    # Only the code, in which nothing is markup, holds words from elsewhere.
    shown = gr.Markdown(text(_HERE), elem_id="kp-api", latex_delimiters=[])

    def here(request: gr.Request) -> str:
        scheme = request.headers.get("x-forwarded-proto", "http")
        host = request.headers.get("host", "")
        if not re.fullmatch(r"[\w.:\[\]-]+", host, re.ASCII):
            return text(_HERE)
        return text(f"{'https' if scheme == 'https' else 'http'}://{host}")

    gr.on(None, here, None, shown, show_progress="hidden", api_visibility="private")
