"""ScaiSpeak's permissions, by the names that API keys carry."""

from __future__ import annotations

from controlplane.scopes import ADMIN, PLATFORM

READ = "voice.read"
WRITE = "voice.write"
SHARE = "voice.share"
TENANT_ADMIN = ADMIN
SUPER_ADMIN = PLATFORM
