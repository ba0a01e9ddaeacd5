#include "train/schedule.h"

#include <cmath>
#include <numbers>

namespace quipu {

double schedule_factor(const OptimizerSection& o, int64_t step, int64_t steps) {
  if (step < o.warmup_steps) return static_cast<double>(step + 1) / static_cast<double>(o.warmup_steps);
  const double f = o.final_fraction;
  switch (o.schedule) {
    case ScheduleKind::kConstant: return 1;
    case ScheduleKind::kCosine: {
      const double left = static_cast<double>(steps - o.warmup_steps);
      const double t = left > 0 ? static_cast<double>(step - o.warmup_steps) / left : 1;
      return f + (1 - f) * 0.5 * (1 + std::cos(std::numbers::pi * t));
    }
    case ScheduleKind::kWsd: {
      const int64_t begin = steps - o.decay_steps;
      if (step < begin) return 1;
      const double t = static_cast<double>(step - begin + 1) / static_cast<double>(o.decay_steps);
      return f + (1 - f) * (1 - std::sqrt(t));
    }
  }
  return 1;
}

}  // namespace quipu
