"""Every route that the openai package covers, through the proxy: openai_client.py URL BASE ADAPTER."""

import sys

import openai

url, base, adapter = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="placeholder", max_retries=0)

listed = {model.id for model in client.models.list()}
assert {base, adapter} <= listed, listed

for model in (base, adapter):
    messages = [{"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    assert chat.model == model and chat.choices[0].message.content is not None, chat
    chunks = list(client.chat.completions.create(
        model=model, messages=messages, max_tokens=4, stream=True, stream_options={"include_usage": True}))
    assert all(chunk.model == model for chunk in chunks) and chunks[-1].usage.completion_tokens == 4, chunks
    text = client.completions.create(model=model, prompt="hello", max_tokens=4)
    assert text.model == model and text.usage.completion_tokens == 4, text
    streamed = list(client.completions.create(model=model, prompt="hello", max_tokens=4, stream=True))
    assert len(streamed) >= 4 and all(chunk.model == model for chunk in streamed), streamed
    response = client.responses.create(model=model, input="hello", max_output_tokens=8, store=False)
    assert response.model == model, response
    events = list(client.responses.create(model=model, input="hello", max_output_tokens=8, store=False, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete"), events[-1]
    waited = client.completions.create(model=model, prompt="hello", max_tokens=1, extra_body={"wait_for_model": True})
    assert waited.usage.completion_tokens == 1, waited

try:
    client.completions.create(model="nobody-has-this", prompt="hello")
    raise AssertionError("a model that does not exist was found")
except openai.NotFoundError as error:
    assert error.code == "model_not_found" and error.param == "model", error

try:
    client.embeddings.create(model=base, input="hello")
    raise AssertionError("a generating model made embeddings")
except openai.APIStatusError as error:
    # Of the engine, in its own words.
    assert error.status_code in (400, 404, 501), error
