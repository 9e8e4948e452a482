// Faults that a test asks for: TENGGAT_STAND_IN_FAULTS names them, with commas between.
//
//   products            cuBLASLt has no way of computing anything
//   first-ways          the first way of each product does not run after all
//   captured-questions  cuBLASLt cannot be asked for a way while work is captured
//   captures            no capture ends well
//   dnn-plans           there is a cuDNN, which has no engine for anything
//   dnn-execution       there is a cuDNN whose plans do not start
//   scales              cuBLASLt takes no scales per row and column, as on all cards but Hopper's
//   product:7           cuBLASLt has no way of computing the 7th product that it is asked about
//   allocation:7        the 7th allocation of device memory finds no room
//   launch:7            the 7th launch of a kernel fails
#pragma once

#include <atomic>
#include <cstdlib>
#include <string>

inline bool fault(const std::string& name) {
    const char* set = std::getenv("TENGGAT_STAND_IN_FAULTS");
    return set && ("," + std::string(set) + ",").find("," + name + ",") != std::string::npos;
}

// Whether this call, of all that ask with the same counter, is the one that is to fail.
inline bool fault(const std::string& name, std::atomic<unsigned>& calls) {
    return fault(name + ":" + std::to_string(++calls));
}
