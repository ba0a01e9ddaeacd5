// What sessions share, without the public face around it: for evaluations that drive many sequences themselves.
#pragma once

#include <memory>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/model_source.h"
#include "generate/runtime.h"

namespace quipu {

Result<std::shared_ptr<Runtime>> load_runtime(ModelSource& source, const EngineOptions& options);

}  // namespace quipu
