"""The tab that says how a program asks for pictures."""

import gradio as gr

from kilopix.data.prompts_to_try import prompts_to_try
from kilopix.web.make_tab import Server

_TEXT = """### Pictures for programs

The endpoint has the form of OpenAI's images endpoint. The same prompt, settings and seed give the same
picture.

```sh
curl -s {root}/v1/images/generations \\
  -H 'Content-Type: application/json' \\
  -d '{{"prompt": "{prompt}", "n": 2, "seed": 7}}'
```

```python
import base64, json, urllib.request

body = json.dumps({{"prompt": "{prompt}", "n": 2, "seed": 7}}).encode()
headers = {{"Content-Type": "application/json"}}
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
| `sampler`, `negative_prompt`, `model` | the model's own, the empty text, and `{first}` if left out |

`GET /v1/models` lists the models and their own settings, `GET /healthz` says whether the server works, and
[`/openapi.json`](/openapi.json) describes all of it. When {limits.queue} requests wait, the next is answered
with 429 and the seconds after which to try again.
"""


def build_api_tab(server: Server) -> None:
    """The tab's text, with the address under which the visitor sees the page."""
    first = next(iter(server.models.values()))
    prompt = prompts_to_try(first.generator.trained_on)[0]

    def text(root: str) -> str:
        return _TEXT.format(root=root, prompt=prompt, limits=server.limits, first=first.name)

    shown = gr.Markdown(text("http://127.0.0.1:7860"), elem_id="kp-api")

    def here(request: gr.Request) -> str:
        scheme = request.headers.get("x-forwarded-proto", "http")
        host = request.headers.get("host", "127.0.0.1:7860")
        return text(f"{'https' if scheme == 'https' else 'http'}://{host}")

    gr.on(None, here, None, shown, show_progress="hidden", api_visibility="private")
