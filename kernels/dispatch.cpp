#include <cstdlib>
#include <string>

#include "error.h"
#include "variant.h"

namespace paretune {
namespace {

struct Candidate {
  const Variant* variant;
  bool supported;
};

}  // namespace

const Variant& select_variant() {
#if defined(PARETUNE_X86)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  const Candidate candidates[] = {{&kAvx512, avx512}, {&kAvx2, avx2}, {&kPortable, true}};
#else
  const Candidate candidates[] = {{&kPortable, true}};
#endif
  const char* wanted = std::getenv("PARETUNE_ISA");
  std::string usable;
  for (const Candidate& candidate : candidates) {
    if (!candidate.supported) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == candidate.variant->name) {
      return *candidate.variant;
    }
    usable += (usable.empty() ? "" : ", ") + std::string(candidate.variant->name);
  }
  throw OpError("PARETUNE_ISA is not usable on this processor: " + std::string(wanted) +
                " (usable: " + usable + ")");
}

}  // namespace paretune
