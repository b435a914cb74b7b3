"""HTTP over the control plane's core: health, metrics, and the dialects as they come."""
