"""The engine in the caller's own process: people to name, recordings in, named turns out.

What `speakerd diarize` runs. In come files in any common format, decoded in the sandbox; out come turns in milliseconds
under the names of those enrolled here, or spk_0, spk_1, ... in order of appearance. Nothing is kept on disk.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from models.analysis import FloatArray
from models.bundle import AnyBundle, load_bundle
from models.calibration_file import with_calibration
from models.diarize import Diarization, SpeakerTurn, diarize_blocks, speaker_bounds
from models.engines import collecting
from models.naming import Verdict, all_of, name_speakers
from models.seams import AnalysisDevice, SlotKind
from runtime.errors import BadAudio, InvalidRequest, SpeakerdError
from runtime.media import SourceFormat, decode, decode_stream
from runtime.units import SAMPLE_RATE_HZ, ms_from_samples, seconds_from_samples
from speakerd.cli.diarize import DiarizeOptions
from speakerd.cli.diarized import Diarized, HeardSpeaker, MatchSummary, percent
from speakerd.timeline import SpokenTurn

NET_SPEECH_MIN = SAMPLE_RATE_HZ
SILENT_PEAK = 1e-4  # -80 dBFS: no microphone in a room is as quiet as that


def open_engine(bundle: str, device: str, calibration: Path | None = None) -> InProcessDiarizer:
    """Load a bundle, with a calibration if there is one, onto a device: "cpu", "cuda" or "cuda:N".

    InvalidRequest when there is no such device.
    """
    loaded = load_bundle(bundle)
    if calibration is not None:
        loaded = with_calibration(loaded, calibration)
    return InProcessDiarizer(open_device(loaded, device), loaded)


def open_device(bundle: AnyBundle, device: str) -> AnalysisDevice:
    """A bundle's engine on a device, as open_engine has it."""
    # Read by OpenMP as torch loads it. Its threads wait by spinning otherwise, and on a machine that has other work to
    # do that makes two of them four times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from models.engines import open_device as open_family_device

    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InvalidRequest(f"--device {device}: say cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidRequest("no CUDA device is to be seen here: leave --device out, or see `speakerd doctor`")
    return open_family_device(bundle, device)


class InProcessDiarizer:
    """An engine and the people whom it can name. Call it from one thread."""

    def __init__(self, device: AnalysisDevice, bundle: AnyBundle) -> None:
        self._device = device
        self._bundle = bundle
        self._voices: dict[str, FloatArray] = {}  # name -> (D,), unit length
        self._voice_speech: dict[str, int] = {}  # name -> clean speech behind it, samples

    def __repr__(self) -> str:
        return f"InProcessDiarizer({self._bundle.id}, {len(self._voices)} voices)"

    def enroll(self, name: str, files: Sequence[Path]) -> None:
        """Name this person from now on, by recordings of them alone. Raises BadAudio for those that are unfit."""
        total = np.zeros(self._device.grid.embedding_dim, np.float32)
        speech_samples = 0
        for file in files:
            heard = self._device.analyze_voice(read_sound(file))
            if heard.num_speakers == 0 or not heard.net_speech_samples:
                raise BadAudio(f"{file}: no speech is heard in it; record {name} alone for 5 to 30 s")
            if heard.num_speakers > 1:
                raise BadAudio(f"{file}: {heard.num_speakers} people are heard; cut it down to {name} alone")
            if heard.net_speech_samples < NET_SPEECH_MIN:
                clean_s = seconds_from_samples(heard.net_speech_samples)
                raise BadAudio(f"{file}: {clean_s:.1f} s of clean speech; 1 s is needed, 5 to 30 s are best")
            total += heard.embedding * heard.net_speech_samples
            speech_samples += heard.net_speech_samples
        self._voices[name] = total / np.linalg.norm(total)
        self._voice_speech[name] = speech_samples

    def diarize(self, file: Path, options: DiarizeOptions, on_progress: Callable[[int, int], None]) -> Diarized:
        """Who spoke when in a recording. Raises BadAudio and its like, naming the file."""
        kind = SlotKind.FAST_FILE if options.mode == "fast" else SlotKind.FILE
        bounds = speaker_bounds(options.num_speakers, options.min_speakers, options.max_speakers)
        reading = _Reading(file)
        found = diarize_blocks(
            self._device,
            reading.blocks(),
            collecting(self._bundle, self._device)(kind),
            kind,
            bounds=bounds,
            score=self._cosines,
            progress=lambda done: on_progress(ms_from_samples(done), reading.declared_ms),
        )
        verdicts = self._verdicts(found)
        speakers = [self._heard_speaker(found, index, verdict) for index, verdict in enumerate(verdicts)]
        return Diarized(
            turns=_spoken(found.turns, speakers),
            exclusive_turns=_spoken(found.exclusive, speakers),
            duration_ms=ms_from_samples(reading.num_samples),
            warnings=() if found.turns else ("nobody speaks in it",),
            speakers=speakers,
            frame_ms=0 if found.confidence is None else ms_from_samples(found.confidence.step_samples),
            frame_confidence=b"" if found.confidence is None else percent(found.confidence.values.tobytes()),
        )

    def close(self) -> None:
        """Forget everybody."""
        self._voices.clear()
        self._voice_speech.clear()

    def _cosines(self, embeddings: FloatArray) -> FloatArray:
        """Of unit vectors (P, D) against everybody enrolled, in order: (P, V)."""
        voices = np.array(list(self._voices.values()), np.float32).reshape(-1, self._device.grid.embedding_dim)
        return np.asarray(embeddings @ voices.T, np.float32)

    def _verdicts(self, found: Diarization) -> list[Verdict]:
        """Who each speaker is, and why."""
        if not found.speakers:
            return []
        speakers = np.stack([speaker.embedding for speaker in found.speakers])  # (P, D)
        net_speech = np.array([speaker.net_speech_samples for speaker in found.speakers])
        voices = all_of(self._cosines(speakers), np.array(list(self._voice_speech.values()), np.int64))
        return name_speakers(voices, net_speech, self._bundle.naming)

    def _heard_speaker(self, found: Diarization, index: int, verdict: Verdict) -> HeardSpeaker:
        names = list(self._voices)
        heard = found.speakers[index]
        name = "" if verdict.voice is None else names[verdict.voice]
        spoken = sum(turn.end_samples - turn.start_samples for turn in found.turns if turn.speaker == index)
        return HeardSpeaker(
            speaker=f"spk_{index}",
            label=name or f"spk_{index}",
            voice_id=name,
            probability=verdict.probability if name else 0.0,
            speech_ms=ms_from_samples(spoken),
            net_speech_ms=ms_from_samples(heard.net_speech_samples),
            match=_match_summary(verdict, names, heard.net_speech_samples),
            confidence=heard.confidence,
            embedding=heard.embedding.tolist() if heard.embedding.any() else (),
        )


def _match_summary(verdict: Verdict, names: Sequence[str], net_speech_samples: int) -> MatchSummary:
    return MatchSummary(
        outcome=verdict.reason.value,
        best="" if verdict.best is None else names[verdict.best],
        best_probability=verdict.probability,
        best_cosine=verdict.cosine,
        best_net_speech_ms=ms_from_samples(verdict.voice_speech_samples),
        runner_up="" if verdict.runner_up is None else names[verdict.runner_up],
        runner_up_probability=verdict.runner_up_probability,
        runner_up_cosine=verdict.runner_up_cosine,
        margin=verdict.margin,
        net_speech_ms=ms_from_samples(net_speech_samples),
    )


def _spoken(turns: Sequence[SpeakerTurn], speakers: Sequence[HeardSpeaker]) -> list[SpokenTurn]:
    return [
        SpokenTurn(
            start_ms=ms_from_samples(turn.start_samples),
            end_ms=ms_from_samples(turn.end_samples),
            speaker=speakers[turn.speaker].speaker,
            label=speakers[turn.speaker].label,
            voice_id=speakers[turn.speaker].voice_id,
            probability=speakers[turn.speaker].probability,
            confidence=turn.confidence,
        )
        for turn in turns
    ]


class _Reading:
    """A recording on its way through the decoder, block by block: a day of it would not fit into memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.num_samples = 0
        self.declared_ms = 0
        """Its length as it states it; 0 where it does not."""

    def blocks(self) -> Iterator[FloatArray]:
        """Its sound, (N,) at 16 kHz each. Errors name the file; that it is silent shows at its end."""
        peak = 0.0
        try:
            with closing(decode_stream(self._file, on_source=self._told)) as blocks:
                for block in blocks:
                    peak = max(peak, float(np.abs(block).max(initial=0.0)))
                    self.num_samples += len(block)
                    yield block
        except SpeakerdError as error:
            raise type(error)(f"{self._file}: {error}") from None
        if peak < SILENT_PEAK:
            raise BadAudio(f"{self._file}: is silent throughout; check what was recorded, and at what level")

    def _told(self, source: SourceFormat) -> None:
        self.declared_ms = round(1000 * source.declared_s)


def read_sound(file: Path) -> FloatArray:
    """A recording's samples (N,) at 16 kHz. Errors name the file."""
    try:
        samples = decode(file).samples
    except SpeakerdError as error:
        raise type(error)(f"{file}: {error}") from None
    if not len(samples) or float(np.abs(samples).max()) < SILENT_PEAK:
        raise BadAudio(f"{file}: is silent throughout; check what was recorded, and at what level")
    return samples
