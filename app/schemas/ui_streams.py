"""The bodies of `POST /api/chat` and `POST /agui/{agent}`, as their clients send them.

Unknown fields are ignored, since clients send many and later versions more. Messages are checked
one by one by `app.routers.ui_streams`, as far as they are new.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.schemas.chat import DisconnectPolicy

_MOST_MESSAGES = 2000
_LONGEST_NAME = 200


def is_session_name(name: str) -> bool:
    """Tell whether a text can be the name of a session."""
    return 0 < len(name) <= _LONGEST_NAME and name.isprintable()


def _require_name(name: str) -> str:
    if not is_session_name(name):
        raise ValueError(f"must have 1 to {_LONGEST_NAME} visible characters")
    return name


ConversationName = Annotated[str, AfterValidator(_require_name)]
_Messages = Annotated[list[dict[str, Any]], Field(max_length=_MOST_MESSAGES)]


class UIChatCreate(BaseModel):
    """What `useChat` of the AI SDK sends."""

    model_config = ConfigDict(extra="ignore")

    id: ConversationName = Field(
        description="The chat: a session's id, or any text, which names a session."
    )
    messages: _Messages = Field(
        description="The chat so far. What follows the last answer in it is the new message; or "
        "the last answer has outputs of tools and responses to approvals in it."
    )
    trigger: Literal["submit-message", "regenerate-message"] | None = None
    message_id: str | None = Field(default=None, alias="messageId")
    agent: str | None = Field(
        default=None,
        max_length=300,
        description="Who answers: `agent-<slug>`, its id, or its name. Without it, and without the "
        "header `X-Agent`, it is the session's agent, or the only one of the workspace.",
    )
    approvals: bool = Field(
        default=True,
        description="Whether the client knows approvals of tool calls: version 5 of the AI SDK "
        "does not, and fails at one.",
    )


class AgUiResume(BaseModel):
    """The answer to an interrupt of an earlier run."""

    model_config = ConfigDict(extra="ignore")

    interrupt_id: str = Field(alias="interruptId")
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class AgUiProps(BaseModel):
    """Options of a run, which AG-UI's clients pass on as they are."""

    model_config = ConfigDict(extra="ignore")

    on_disconnect: DisconnectPolicy = DisconnectPolicy.CONTINUE


class AgUiRun(BaseModel):
    """What AG-UI's clients send: a `RunAgentInput`."""

    model_config = ConfigDict(extra="ignore")

    thread_id: ConversationName = Field(
        alias="threadId", description="A session's id, or any text, which names a session."
    )
    run_id: str = Field(
        alias="runId",
        min_length=1,
        max_length=200,
        description="The same run again with the same body is answered as the first time.",
    )
    messages: _Messages
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = Field(
        default=None,
        description="Tools that the client runs: of the kind `client` that the agent has, or for "
        "an agent without tools the request's own.",
    )
    resume: Annotated[list[AgUiResume], Field(max_length=128)] | None = None
    forwarded_props: AgUiProps | None = Field(default=None, alias="forwardedProps")
