"""The Realtime API: a WebSocket in the words of OpenAI's protocol, over `services.live_voice`."""
