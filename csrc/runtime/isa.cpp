#include "runtime/isa.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "cpu/tiles/compiled.h"

#ifdef CONTNET_FAST_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace contnet_fast {
namespace {

constexpr Isa kAll[] = {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx};
constexpr const char* kAbsent = "this CPU does not have it";

#ifdef CONTNET_FAST_X86
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  explicit Leaf(unsigned part) {
    if (!__get_cpuid_count(7, part, &a, &b, &c, &d)) a = b = c = d = 0;
  }
};

// AMX has eight KiB of registers, which Linux gives a process that asks.
std::string amx_permission() {
#ifdef __linux__
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  if (syscall(SYS_arch_prctl, kRequest, kTileData) == 0) return "";
  return std::string("the operating system denies its registers (arch_prctl: ") + std::strerror(errno) + ")";
#else
  return "its registers are asked for on Linux alone";
#endif
}
#endif

// Why it cannot run here, given that those before it can.
std::string reason_against(Isa isa) {
  if (isa == Isa::portable) return "";
#ifdef CONTNET_FAST_X86
  switch (isa) {
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
                 ? ""
                 : kAbsent;
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
                 ? ""
                 : kAbsent;
    case Isa::avx512_bf16:
#ifndef CONTNET_FAST_AVX512_BF16
      return "the compiler of this extension cannot make it";
#endif
      return Leaf(1).a >> 5 & 1 ? "" : kAbsent;
    default:
#ifndef CONTNET_FAST_AMX
      return "the compiler of this extension cannot make it";
#endif
      return (Leaf(0).d >> 22 & 5) == 5 ? amx_permission() : kAbsent;  // its bfloat16 products and its tiles
  }
#else
  return "the extension was built for another kind of CPU";
#endif
}

Isa find(const std::string& wanted, const char* what) {
  std::string words;
  for (Isa isa : kAll) {
    if (name(isa) == wanted) return isa;
    words += (words.empty() ? "" : ", ") + name(isa);
  }
  throw std::invalid_argument(std::string(what) + ": got '" + wanted + "', accepted: " + words);
}

struct Choice {
  std::atomic<Isa> limit{Isa::amx}, in_use{Isa::portable};
  std::atomic<bool> made{false};
};

Choice& choice() {
  static Choice one;
  if (!one.made) {
    for (Isa isa : kAll)
      if (isa <= one.limit && reason_against(isa).empty())
        one.in_use = isa;
      else
        break;
    one.made = true;
  }
  return one;
}

}  // namespace

Isa instruction_set() { return choice().in_use; }

std::string name(Isa isa) {
  switch (isa) {
    case Isa::amx: return "amx";
    case Isa::avx512_bf16: return "avx512_bf16";
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "portable";
  }
}

std::vector<std::pair<std::string, std::string>> instruction_set_reasons() {
  std::vector<std::pair<std::string, std::string>> found;
  std::string before;
  for (Isa isa : kAll) {
    std::string reason = isa > choice().limit ? "limited to " + name(choice().limit) : reason_against(isa);
    if (reason.empty() && !before.empty()) reason = "it needs " + before;
    if (!reason.empty() && before.empty()) before = name(isa);
    found.emplace_back(name(isa), reason);
  }
  return found;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const auto& [name, reason] : instruction_set_reasons())
    if (reason.empty()) names.push_back(name);
  return names;
}

void use_instruction_set(const std::string& wanted) {
  const Isa isa = find(wanted, "instruction set");
  for (const std::string& one : instruction_sets())
    if (one == wanted) {
      choice().in_use = isa;
      return;
    }
  throw std::invalid_argument("instruction set: got '" + wanted + "', accepted: those of instruction_sets()");
}

void limit_instruction_set(const std::string& wanted) {
  const Isa isa = find(wanted, "CONTNET_FAST_ISA");
  static_cast<void>(choice());
  choice().limit = isa;
  choice().made = false;
}

}  // namespace contnet_fast
