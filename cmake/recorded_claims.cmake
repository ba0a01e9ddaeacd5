# Writes OUT, a source file that holds the figures of FOLDER/NAME.json, what `quipu reproduce NAME --json` printed for the
# repository, and touches it only when they changed. Run at every build:
#   cmake -DFOLDER=results/claims -DOUT=file -P recorded_claims.cmake
file(GLOB files ${FOLDER}/*.json)
list(SORT files)
set(text "#include \"engine/reproduce.h\"\n\nnamespace quipu {\nstd::string_view recorded_claims(std::string_view name) {\n")
foreach(file ${files})
  get_filename_component(name ${file} NAME_WE)
  file(READ ${file} figures)
  string(APPEND text "  if (name == \"${name}\") return R\"figures(${figures})figures\";\n")
endforeach()
string(APPEND text "  return {};\n}\n}  // namespace quipu\n")
include(${CMAKE_CURRENT_LIST_DIR}/write_if_changed.cmake)
write_if_changed(${OUT} "${text}")
