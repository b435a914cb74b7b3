"""Stubs generated from proto/speakerd/v1 (`make proto`). Do not edit."""
