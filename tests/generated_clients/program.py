"""Uses the package that openapi-python-client generates: one turn, one error, one recording.

Run by the generator's Python with a server's URL, a key and a WAV file.
"""
# pyright: reportMissingTypeStubs=false

import io
import sys
from pathlib import Path
from uuid import UUID

from generated_client import AuthenticatedClient
from generated_client.api.agents import create_agent, list_agents, patch_agent
from generated_client.api.messages import send_text_message
from generated_client.api.sessions import create_session, update_session
from generated_client.api.turns import get_turn, get_turn_audio
from generated_client.models import (
    AgentCreate,
    AgentRead,
    AgentUpdate,
    Problem,
    ReplyRead,
    SessionCreate,
    SessionRead,
    SessionUpdate,
    TextMessageCreate,
    TurnStatus,
    TurnWithMessage,
    VoiceMessageCreate,
)
from generated_client.types import File


def converse(client: AuthenticatedClient) -> ReplyRead:
    """Make an agent and a session, change both, and send a message."""
    agent = create_agent.sync(client=client, body=AgentCreate(name="Ada"))
    assert isinstance(agent, AgentRead)
    changed = patch_agent.sync(agent.id, client=client, body=AgentUpdate(voice="nova"))
    assert isinstance(changed, AgentRead), changed
    assert (changed.name, changed.voice) == ("Ada", "nova")
    body = SessionCreate(agent_id=agent.id, title="Trip")
    session = create_session.sync(client=client, body=body)
    assert isinstance(session, SessionRead)
    renamed = update_session.sync(session.id, client=client, body=SessionUpdate(title="Travel"))
    assert isinstance(renamed, SessionRead), renamed
    assert (renamed.title, renamed.agent_id) == ("Travel", agent.id)
    message = TextMessageCreate(session_id=session.id, content="Hi")
    reply = send_text_message.sync(client=client, body=message, idempotency_key="once")
    assert isinstance(reply, ReplyRead), reply
    return reply


def main(url: str, key: str, recording: Path) -> None:
    """Say what came back."""
    client = AuthenticatedClient(base_url=url, token=key, timeout=None)
    reply = converse(client)
    assert reply.turn_id is not None
    turn = get_turn.sync(reply.turn_id, client=client)
    assert isinstance(turn, TurnWithMessage)
    assert turn.status is TurnStatus.COMPLETED
    print(reply.content)  # noqa: T201
    refused = get_turn.sync(UUID(int=0), client=client)
    assert isinstance(refused, Problem)
    print(refused.code)  # noqa: T201
    wrong = AuthenticatedClient(base_url=url, token="ap_wrong")
    problem = list_agents.sync(client=wrong)
    assert isinstance(problem, Problem)
    print(problem.code)  # noqa: T201
    upload = VoiceMessageCreate(
        session_id=reply.session_id, audio=File(io.BytesIO(recording.read_bytes()), "a.wav")
    )
    files = upload.to_multipart()
    spoken = client.get_httpx_client().post("/messages/voice", files=files)
    audio = get_turn_audio.sync(UUID(spoken.headers["x-turn-id"]), client=client)
    assert isinstance(audio, File)
    print(audio.payload.read() == spoken.content, len(spoken.content) > 1000)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
