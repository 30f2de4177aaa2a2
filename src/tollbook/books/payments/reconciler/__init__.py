"""The reconciler: the books against the chains, and the chains against the books."""
