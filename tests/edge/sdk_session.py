"""What a user of pyannoteAI's SDK does, run by tests with one version of it on the path.

In: JSON on stdin: url, key, talk, no_sound, samples {label: path}, version, full (whether all is tried), pipeline
(whether pyannote.audio's is run instead).
Out: JSON on stdout. Nothing of the SDK is touched but `Client.API_URL`.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

EVERY_S = 1


def main() -> None:
    asked = json.load(sys.stdin)
    warnings.simplefilter("ignore")
    import pyannoteai.sdk.client as sdk

    assert sdk.__version__ == asked["version"], (sdk.__version__, sdk.__file__)
    sdk.Client.API_URL = asked["url"] + "/v1"
    json.dump(_pipeline(asked) if asked["pipeline"] else _session(sdk, asked), sys.stdout)


def _session(sdk: Any, asked: dict[str, Any]) -> dict[str, Any]:
    client = sdk.Client(token=asked["key"])
    progress: list[int] = []
    talk = client.upload(asked["talk"], callback=lambda total, completed: progress.append(completed))
    named = client.upload(asked["talk"], media_url="media://talks/of-today_1.wav")
    again = client.upload(asked["talk"], media_url=named)
    voiceprints = {
        label: client.retrieve(client.voiceprint(client.upload(path)), every_seconds=EVERY_S)["output"]["voiceprint"]
        for label, path in asked["samples"].items()
    }
    diarized = client.retrieve(client.diarize(talk), every_seconds=EVERY_S)
    identified = client.retrieve(client.identify(again, voiceprints), every_seconds=EVERY_S)
    failure = ""
    try:
        client.retrieve(client.diarize(client.upload(asked["no_sound"])), every_seconds=EVERY_S)
    except sdk.PyannoteAIFailedJob as error:
        failure = str(error.args[0])
    got = {"urls": [talk, named], "uploaded": progress[-1], "voiceprints": voiceprints, "failure": failure}
    got |= {"diarized": diarized, "identified": identified, "refused": _refused(sdk)}
    if asked["full"]:
        counted = client.diarize(again, num_speakers=2, confidence=True, turn_level_confidence=True)
        strict = client.identify(talk, voiceprints, matching_threshold=100.0, exclusive_matching=False)
        got |= {"counted": client.retrieve(counted, every_seconds=EVERY_S)}
        got |= {"strict": client.retrieve(strict, every_seconds=EVERY_S)}
    return got


def _refused(sdk: Any) -> str:
    try:
        sdk.Client(token="sk_000000000000_wrong")
    except sdk.HTTPError as error:
        return str(error)
    return ""


def _pipeline(asked: dict[str, Any]) -> dict[str, Any]:
    from pyannote.audio.pipelines.pyannoteai.sdk import SDK

    output = SDK(token=asked["key"])(asked["talk"])
    return {
        name: [
            {"speaker": speaker, "start": segment.start, "end": segment.end}
            for segment, _, speaker in annotation.itertracks(yield_label=True)
        ]
        for name, annotation in (
            ("diarization", output.speaker_diarization),
            ("exclusive", output.exclusive_speaker_diarization),
        )
    }


if __name__ == "__main__":
    main()
