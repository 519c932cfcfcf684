"""Store the images of a tool's result: they belong to the session, and are shown to the model."""

import logging
from collections.abc import Sequence

from app.core.errors import AppError
from app.core.security import Caller
from app.services.files.limits import TOOL_IMAGE_BYTES, TOOL_IMAGES
from app.services.tool_ports import ToolFile
from app.services.turns.context.attachments import PromptFiles, image_part
from app.services.turns.parts import ImagePart
from app.services.turns.records import TurnRecord

logger = logging.getLogger(__name__)


async def store_images(
    files: PromptFiles, record: TurnRecord, name: str, images: Sequence[ToolFile]
) -> list[ImagePart]:
    """Return the stored images as parts of the answer; none where they cannot be stored."""
    owner = Caller(
        record.workspace_id, session_user_id=record.user_id, session_id=record.session_id
    )
    try:
        drafts = [
            draft
            for image in images[:TOOL_IMAGES]
            if len(image.data) <= TOOL_IMAGE_BYTES
            and (draft := await files.library.check_image(owner, name, image.data))
        ]
        await files.library.store_in_session(drafts)
    except AppError as error:  # such as a workspace that may store no more
        logger.warning("the images of a tool's result are not stored: %s", error.code)
        return []
    return [image_part(draft) for draft in drafts]
