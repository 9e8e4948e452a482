// SiLU.

DEVICE float gate(float x) { return sigmoid(x); }
DEVICE float slope(float) { return 1.0f; }

ACTIVATION(silu)
