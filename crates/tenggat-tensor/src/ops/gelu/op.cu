// GELU, tanh form: the gate is sigmoid(2u).

constexpr float SCALE = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;

DEVICE float gate(float x) { return sigmoid(2.0f * SCALE * (x + CUBIC * x * x * x)); }
DEVICE float slope(float x) { return 2.0f * SCALE + 6.0f * SCALE * CUBIC * x * x; }

ACTIVATION(gelu)
