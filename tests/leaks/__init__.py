"""The leak scan: whatever daemons wrote is searched for names, sound, voiceprints and keys, in many encodings."""
