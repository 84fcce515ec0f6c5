// One-sentence failures of the op. Thrown inside the library only: register.cpp turns them into an
// OrtStatus before they can reach the C boundary.
#pragma once

#include <stdexcept>
#include <string>

namespace paretune {

struct OpError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool condition, const char* message) {
  if (!condition) throw OpError(message);
}

}  // namespace paretune
