# Writes OUT, a source file that knows the commit of SOURCE, and touches it only when that changed. Run at every build:
#   cmake -DSOURCE=folder -DOUT=file -P commit.cmake
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed OR commit STREQUAL "")
  set(commit unknown)
endif()
set(text "#include \"engine/reproduce.h\"\n\nnamespace quipu {\nstd::string build_commit() { return \"${commit}\"; }\n}\n")
include(${CMAKE_CURRENT_LIST_DIR}/write_if_changed.cmake)
write_if_changed(${OUT} "${text}")
