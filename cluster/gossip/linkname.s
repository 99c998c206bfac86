// This file has no code. With it here the compiler allows functions without a body, which liveness.go links to.
