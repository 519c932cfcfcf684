"""uvicorn's server, which goes on answering while the turns that run have time to end."""

from typing_extensions import override
from uvicorn.server import Server

from app.services.turns import TurnEngine


class DrainingServer(Server):
    """Listens until the last turn has ended: readiness and new turns get a 503, not a refusal.

    uvicorn itself stops listening first. Without turns it ends at once.
    """

    @override
    async def on_tick(self, counter: int) -> bool:
        """Tell whether to shut down now."""
        should_exit = await super().on_tick(counter)
        if not should_exit or self.force_exit:
            return should_exit
        engine: TurnEngine | None = self.lifespan.state.get("turns")
        return engine is None or not engine.is_draining or engine.is_stopped
