"""What the two dialects of ScaiGrid have in common: ScaiEcho and ScaiSpeak speak in one envelope."""
