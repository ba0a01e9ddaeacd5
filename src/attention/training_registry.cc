// Where the rooms' trainable forms meet their names.
#include <array>
#include <string>

#include "attention/training.h"
#include "base/byte_reader.h"

namespace quipu {

#define ROOM(name)                                                                                                       \
  template <class Real>                                                                                                  \
  Result<std::unique_ptr<TrainableAttention<Real>>> create_training_##name(                                              \
      const AttentionShape& shape, const HyperParameters& parameters, std::span<const std::string> optional_roles);
#include "attention/trainable_rooms.def"
#undef ROOM

template <class Real>
Result<std::unique_ptr<TrainableAttention<Real>>> create_training(std::string_view room, const AttentionShape& shape,
                                                                  const HyperParameters& parameters,
                                                                  std::span<const std::string> optional_roles) {
  std::string names;
#define ROOM(name)                                                                                            \
  if (room == #name) return create_training_##name<Real>(shape, parameters, optional_roles);                  \
  names += (names.empty() ? "" : ", ") + std::string(#name);
#include "attention/trainable_rooms.def"
#undef ROOM
  return usage_error(parameters.origin() + ": attention room \"" + printable(room) + "\" cannot be trained; those that can: " + names);
}

template Result<std::unique_ptr<TrainableAttention<float>>> create_training(std::string_view, const AttentionShape&,
                                                                            const HyperParameters&, std::span<const std::string>);
template Result<std::unique_ptr<TrainableAttention<double>>> create_training(std::string_view, const AttentionShape&,
                                                                             const HyperParameters&, std::span<const std::string>);

}  // namespace quipu
