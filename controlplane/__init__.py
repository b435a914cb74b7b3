"""The control plane: voices and consent, the fleet of nodes, placement, erasure, and the gRPC services over them."""
