// The only place where the rooms' names meet. A room <name> defines create_<name>() in its folder.
#include <array>

#include "attention/attention.h"
#include "base/byte_reader.h"

namespace quipu {

#define ROOM(name)                                                                                                 \
  Result<std::unique_ptr<Attention>> create_##name(const AttentionShape& shape, const HyperParameters& parameters, \
                                                   WeightSource& weights, Backend& backend);
#include "attention/rooms.def"
#undef ROOM

namespace {

#define ROOM(name) RoomEntry{#name, create_##name},
constexpr std::array kRooms = {
#include "attention/rooms.def"
};
#undef ROOM

}  // namespace

std::span<const RoomEntry> all_rooms() { return kRooms; }

Result<const RoomEntry*> find_room(std::string_view name) {
  std::string names;
  for (const RoomEntry& room : kRooms) {
    if (room.name == name) return &room;
    names += (names.empty() ? "" : ", ") + std::string(room.name);
  }
  return bad_input("no attention room is called \"" + printable(name) + "\"; there are: " + names);
}

}  // namespace quipu
