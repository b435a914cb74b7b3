"""pyannote's family of checkpoints: PyanNet for segmentation, WeSpeaker's ResNets for voices, VBx or agglomeration.

Same results as pyannote.audio's own SpeakerDiarization, several times faster. Importing this package does not import
torch, nor pyannote.audio; `networks` does, with its telemetry off.
"""
