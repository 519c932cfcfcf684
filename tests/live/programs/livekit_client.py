"""LiveKit's plugin for OpenAI's Realtime API against our server; prints what it found as JSON.

`livekit_client.py URL KEY SPEECH [killed]`: `SPEECH` is PCM of 24 kHz. With `killed` it says
`answering` in mid-answer, and goes on when its line is back.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import APIConnectOptions, llm
from livekit.plugins.openai import realtime
from openai.types.beta.realtime.session import TurnDetection

RATE = 24_000
FRAME = RATE // 50
SECONDS = 150


class Client:
    """A session of the plugin, and what it was told."""

    def __init__(self, url: str, key: str) -> None:
        self.model = realtime.RealtimeModel(
            model="agent-ada",
            base_url=url,
            api_key=key,
            conn_options=APIConnectOptions(max_retry=60, retry_interval=1.0),
            turn_detection=TurnDetection(type="server_vad", interrupt_response=True),
        )
        self.session = self.model.session()
        self.errors: list[str] = []
        self.transcripts: list[str] = []
        self.generations: asyncio.Queue[llm.GenerationCreatedEvent] = asyncio.Queue()
        self.speech_started = asyncio.Event()
        self.reconnected = asyncio.Event()
        session = self.session
        session.on("error", lambda error: self.errors.append(str(error.error)))
        session.on("generation_created", self._take_generation)
        session.on("session_reconnected", lambda _: self.reconnected.set())
        session.on("input_speech_started", lambda _: self.speech_started.set())
        session.on(
            "input_audio_transcription_completed",
            lambda event: self.transcripts.append(event.transcript) if event.is_final else None,
        )

    def _take_generation(self, event: llm.GenerationCreatedEvent) -> None:
        if not event.user_initiated:
            self.generations.put_nowait(event)

    async def write(self, text: str) -> llm.GenerationCreatedEvent:
        context = self.session.chat_ctx.copy()
        context.add_message(role="user", content=text)
        await self.session.update_chat_ctx(context)
        return await self.session.generate_reply()

    async def speak(self, pcm: bytes) -> None:
        """Speak as a microphone does, in its own time."""
        for start in range(0, len(pcm), 2 * FRAME):
            data = pcm[start : start + 2 * FRAME].ljust(2 * FRAME, b"\0")
            self.session.push_audio(rtc.AudioFrame(data, RATE, 1, FRAME))
            await asyncio.sleep(0.01)


async def said(generation: llm.GenerationCreatedEvent) -> dict[str, Any]:
    """Return what an answer says, for how long, and what it calls."""
    answer: dict[str, Any] = {"text": "", "seconds": 0.0, "calls": [], "id": ""}

    async def read_sound(message: llm.MessageGeneration) -> None:
        async for frame in message.audio_stream:
            answer["seconds"] += frame.duration

    async for message in generation.message_stream:
        answer["id"] = message.message_id
        reading = asyncio.create_task(read_sound(message))
        async for piece in message.text_stream:
            answer["text"] += piece
        await reading
    async for call in generation.function_stream:
        answer["calls"].append({"id": call.call_id, "name": call.name, "arguments": call.arguments})
    return answer


async def talk(client: Client, speech: bytes) -> dict[str, Any]:
    written = await said(await client.write("Hi."))
    await client.speak(speech + bytes(2 * RATE * 3 // 2))
    spoken = await said(await client.generations.get())
    while not client.transcripts:
        await asyncio.sleep(0.01)
    # somebody interrupts the next answer
    generation = await client.write("Tell me everything.")
    reading = asyncio.create_task(said(generation))
    await asyncio.sleep(1.5)
    client.speech_started.clear()
    await client.speak(speech)
    await client.speech_started.wait()
    cut = await reading
    client.session.truncate(message_id=cut["id"], modalities=["audio"], audio_end_ms=1000)
    await client.speak(bytes(2 * RATE * 3 // 2))
    after = await said(await client.generations.get())
    # a tool of the client
    client.session.interrupt()

    async def weather(city: str) -> str:
        """Tell the weather."""
        return f"Sunny in {city}."

    await client.session.update_tools([llm.function_tool(weather)])
    asked = await said(await client.write("How is the weather?"))
    (call,) = asked["calls"]
    context = client.session.chat_ctx.copy()
    output = llm.FunctionCallOutput(
        call_id=call["id"], name="weather", output="Sunny.", is_error=False
    )
    context.items.append(output)
    await client.session.update_chat_ctx(context)
    told = await said(await client.session.generate_reply())
    errors_before = list(client.errors)
    client.session.commit_audio()
    client.session.truncate(message_id="item_unknown", modalities=["audio"], audio_end_ms=1)
    while client.errors == errors_before:
        await asyncio.sleep(0.01)
    return {
        "written": written,
        "spoken": spoken,
        "cut": cut,
        "after": after,
        "calls": asked["calls"],
        "told": told["text"],
        "transcripts": client.transcripts,
        "errors": errors_before,
        "refused": len(client.errors) - len(errors_before),
    }


async def outlive(client: Client) -> dict[str, Any]:
    """Go on behind a server that was killed in mid-answer."""
    first = await said(await client.write("Remember the number seven."))
    generation = await client.write("Hi.")
    reading = asyncio.create_task(said(generation))
    print("answering", flush=True)
    await client.reconnected.wait()
    await reading  # it ends with the line
    while len(client.session.chat_ctx.items) < 3:  # what it brings again
        await asyncio.sleep(0.01)
    again = await said(await client.write("Still there?"))
    return {"first": first["text"], "again": again["text"]}


async def main() -> None:
    url, key, speech, *mode = sys.argv[1:]
    client = Client(url, key)
    async with asyncio.timeout(SECONDS):
        found = await (outlive(client) if mode else talk(client, Path(speech).read_bytes()))
    await client.session.aclose()
    await client.model.aclose()
    print(json.dumps(found))


asyncio.run(main())
