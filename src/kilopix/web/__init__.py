"""The web page and the REST endpoint: what a browser and a program see of a model.

`worker` owns the models and makes the pictures; `rest` and the tabs of `page` ask it; `guard` stands
before both. Gradio and FastAPI are imported only by the modules that build with them.
"""
