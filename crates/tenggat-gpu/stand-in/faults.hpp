// Faults that a test asks for: TENGGAT_STAND_IN_FAULTS names them, with commas between.
//
//   products            cuBLASLt has no way of computing anything
//   first-ways          the first way of each product does not run after all
//   captured-questions  cuBLASLt cannot be asked for a way while work is captured
//   captures            no capture ends well
//   dnn-plans           there is a cuDNN, which has no engine for anything
//   dnn-execution       there is a cuDNN whose plans do not start
#pragma once

#include <cstdlib>
#include <string>

inline bool fault(const std::string& name) {
    const char* set = std::getenv("TENGGAT_STAND_IN_FAULTS");
    return set && ("," + std::string(set) + ",").find("," + name + ",") != std::string::npos;
}
