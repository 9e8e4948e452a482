// A cuDNN that is too old for anything, before one that this machine may have: that would ask the stand-ins for what
// they do not know.
#include <cstddef>

extern "C" __attribute__((visibility("default"))) size_t cudnnGetVersion() { return 0; }
