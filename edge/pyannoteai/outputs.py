"""A job as pyannoteAI's clients read it: JSON, and beyond it RTTM, SRT and the match report.

In: the core's Job. Out: plain dicts and texts. What always holds: `output` is left out where there is none; a speaker
is SPEAKER_00, SPEAKER_01, … by first appearance; scores are whole numbers from 0 to 100, times seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from controlplane.job_spec import JobKind, JobState
from controlplane.job_view import FrameConfidences, Job, JobAsked, JobOutput, JobSpeaker, JobTurn
from speakerd.rttm import RttmTurn, rttm_line
from speakerd.v1 import common_pb2

RESOLUTION_MS = 20


def job_body(job: Job) -> dict[str, Any]:
    """GET /v1/jobs/{jobId}."""
    body: dict[str, Any] = {
        "jobId": job.job_id,
        "status": job.state.value,
        "createdAt": instant(job.created_at_s),
        "updatedAt": instant(job.updated_at_s),
        "progress": progress_of(job),
    }
    output = output_body(job)
    if output is not None:
        body["output"] = output
    return body


def output_body(job: Job) -> dict[str, Any] | None:
    """The `output` of a job, for its reader and for webhooks; None: leave it out."""
    if job.state is JobState.FAILED:
        return {"error": job.error or "the job failed"}
    if job.state is not JobState.SUCCEEDED or job.output is None:
        return None
    output, asked = job.output, job.asked or JobAsked()
    if job.kind is JobKind.VOICEPRINT:
        body: dict[str, Any] = {"voiceprint": output.voiceprint or ""}
    else:
        body = _diarization(output, asked)
        if job.kind is JobKind.IDENTIFY:
            body |= _identification(output)
    warnings = dict.fromkeys(text for text in (job.warning, *output.warnings) if text)
    if warnings:
        body["warning"] = "; ".join(warnings)
    return body


def progress_of(job: Job) -> int:
    """How much of the recording was heard, 0 to 100; 100 only when it succeeded."""
    if job.state is JobState.SUCCEEDED:
        return 100
    return min(99, 100 * job.processed_ms // job.duration_ms) if job.duration_ms else 0


def names_told(job: Job) -> frozenset[tuple[str | None, str]]:
    """Every name that the output tells, and whose it is (two may share one), to see whether it may still be told."""
    if job.output is None:
        return frozenset()
    turns = (*job.output.turns, *job.output.exclusive_turns)
    told = {(turn.voice_id, turn.name) for turn in turns if turn.name is not None}
    for speaker in job.output.speakers:
        told |= {(None, label) for label in speaker.scores or ()}
    return frozenset(told)


def is_large(job: Job) -> bool:
    """Whether it takes more than a moment to write it down."""
    output = job.output
    return output is not None and (len(output.turns) > 1_000 or output.confidence is not None)


def instant(at_s: float) -> str:
    """Unix seconds as ISO 8601 with milliseconds, UTC."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def label(speaker: int) -> str:
    """What a speaker without a name is called."""
    return f"SPEAKER_{speaker:02d}"


def _diarization(output: JobOutput, asked: JobAsked) -> dict[str, Any]:
    body: dict[str, Any] = {"diarization": [_segment(turn, asked) for turn in output.turns]}
    if asked.exclusive:
        body["exclusiveDiarization"] = [_segment(turn, asked) for turn in output.exclusive_turns]
    if asked.confidence and output.confidence is not None:
        body["confidence"] = {
            "score": _scores(output.confidence, output.duration_ms),
            "resolution": RESOLUTION_MS / 1000,
        }
    return body


def _segment(turn: JobTurn, asked: JobAsked) -> dict[str, Any]:
    speaker = label(turn.speaker)
    segment: dict[str, Any] = {"speaker": speaker, "start": turn.start_ms / 1000, "end": turn.end_ms / 1000}
    if asked.turn_confidence and turn.confidence is not None:
        segment["confidence"] = {speaker: round(100 * turn.confidence)}
    return segment


def _identification(output: JobOutput) -> dict[str, Any]:
    return {
        "identification": [
            {
                "speaker": turn.name or label(turn.speaker),
                "start": turn.start_ms / 1000,
                "end": turn.end_ms / 1000,
                "diarizationSpeaker": label(turn.speaker),
                "match": turn.name,
            }
            for turn in output.turns
        ],
        "voiceprints": [
            {"speaker": label(one.speaker), "match": one.match, "confidence": dict(one.scores or {})}
            for one in output.speakers
        ],
    }


def _scores(frames: FrameConfidences, duration_ms: int) -> list[int]:
    values = np.frombuffer(frames.values, np.uint8)  # (F,)
    if not len(values):
        return []
    count = -(-duration_ms // RESOLUTION_MS) or len(values) * frames.frame_ms // RESOLUTION_MS
    at = np.minimum(np.arange(count) * RESOLUTION_MS // frames.frame_ms, len(values) - 1)
    scores: list[int] = np.rint(values[at] * (100 / 255)).astype(int).tolist()
    return scores


def rttm(job_id: str, output: JobOutput) -> str:
    """The turns as RTTM, by name where there is one."""
    turns = (RttmTurn(turn.start_ms, turn.end_ms, turn.name or label(turn.speaker)) for turn in output.turns)
    return "".join(rttm_line(job_id, turn) + "\n" for turn in turns)


def srt(output: JobOutput) -> str:
    """The turns as subtitles that say who speaks."""
    cues = (
        f"{number}\n{_srt_time(turn.start_ms)} --> {_srt_time(turn.end_ms)}\n{_one_line(turn)}\n"
        for number, turn in enumerate(output.turns, start=1)
    )
    return "\n".join(cues)


def _one_line(turn: JobTurn) -> str:
    # A line break or an arrow within a name would begin another cue.
    return " ".join((turn.name or label(turn.speaker)).replace("-->", "→").split())


def _srt_time(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{ms:03d}"


def report_body(job_id: str, output: JobOutput) -> dict[str, Any]:
    """Why each speaker was matched with somebody, or not."""
    return {"jobId": job_id, "speakers": [_reported(one) for one in output.speakers]}


def _reported(one: JobSpeaker) -> dict[str, Any]:
    body: dict[str, Any] = {
        "speaker": label(one.speaker),
        "match": one.match,
        "speech": one.speech_ms / 1000,
        "netSpeech": one.net_speech_ms / 1000,
        "confidence": dict(one.scores or {}),
    }
    if one.voice_id:
        body["voiceId"] = one.voice_id
    if one.report is not None:
        report = one.report
        body["report"] = {
            "outcome": common_pb2.MatchReport.Outcome.Name(report.outcome).removeprefix("OUTCOME_").lower(),
            "bestVoiceId": report.best_voice_id,
            "bestProbability": round(report.best_probability, 4),
            "bestCosine": round(report.best_cosine, 4),
            "bestNetSpeech": report.best_net_speech_ms / 1000,
            "runnerUpVoiceId": report.runner_up_voice_id,
            "runnerUpProbability": round(report.runner_up_probability, 4),
            "runnerUpCosine": round(report.runner_up_cosine, 4),
            "margin": round(report.margin, 4),
        }
    return body
