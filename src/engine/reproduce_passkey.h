// quipu reproduce passkey: models trained on short texts find a pass key in texts of up to four million tokens.
//                                                  [Munkhdalai, Faruqui, Gopal 2024, the table of pass key retrieval]
//
// Everything is kept in a work folder, so that a run that was stopped goes on where it was: NAME.toml and NAME/ (the
// training run), NAME-cells.json (table cells as they are finished), passkey.json and passkey.svg (the whole).
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "train/passkey_task.h"

namespace quipu {

// One model: what it is and how it is trained.
struct PasskeyRecipe {
  std::string name;             // "linear"
  std::string summary;
  // Lines of TOML, behind those that all recipes share: of the model's config.json, and its attention, of the task, of
  // [train].
  std::string model, attention, task, train;
  std::string deviation = "0.1";   // of random matrices
  PasskeyKind kind = {};
  bool repeats = true;          // repeat-count augmentation in training
  bool controls = false;        // memory off and foreign memory are measured, too
  bool quick = false;           // what --quick trains: smaller, shorter
  int64_t samples = 50;         // texts a cell
};
const std::vector<PasskeyRecipe>& passkey_recipes();

// The file `quipu train` is given for a recipe.
std::string passkey_training_text(const PasskeyRecipe& recipe, const std::string& folder);

}  // namespace quipu
