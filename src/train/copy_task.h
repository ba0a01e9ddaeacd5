// The task "copy": random letters, a separator, the same letters again. Solved by attention that looks back a fixed
// distance, or by a memory; the smallest sign that a model learns at all.
//
// [data.copy]: letters = 8 (how many in one question), alphabet = 26 (how many different ones, 2 to 26).
#pragma once

#include "train/task.h"

namespace quipu {

Result<std::unique_ptr<Task>> make_copy_task(SettingsReader settings, const TaskOptions& options);

}  // namespace quipu
