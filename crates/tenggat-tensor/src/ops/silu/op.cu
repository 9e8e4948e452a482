// SiLU.

DEVICE float gate(float x) { return 1.0f / (1.0f + __expf(-x)); }
DEVICE float slope(float) { return 1.0f; }

ACTIVATION(silu)
