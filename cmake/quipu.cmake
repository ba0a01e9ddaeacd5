# Build rules of the house: one static library per folder. A library's link list is its permission to include;
# tests/architecture checks the same graph on the #include lines.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(QUIPU_CCACHE ccache)
if(QUIPU_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${QUIPU_CCACHE})
endif()

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)

# No -ffast-math and no contraction: NaN must reach every comparator, and fma is written where it is meant.
add_compile_options(-Wall -Wextra -Wshadow -Wno-psabi -ffp-contract=off -fno-math-errno)
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")   # CHECK stays on; assert is not used
if(QUIPU_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()
if(QUIPU_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all)
  add_link_options(-fsanitize=address,undefined)
endif()

# quipu_library(NAME SOURCES a.cc ... LINKS quipu_base ...): static library; includes are rooted at src/.
function(quipu_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS;PRIVATE_LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(${name} PUBLIC ${ARG_LINKS} PRIVATE ${ARG_PRIVATE_LINKS})
endfunction()

# quipu_test(NAME SOURCES a_test.cc ... LINKS ...): one GoogleTest binary, one ctest entry.
function(quipu_test name)
  if(NOT QUIPU_TESTS OR QUIPU_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINKS" ${ARGN})
  find_package(GTest REQUIRED)
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} GTest::gtest GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE QUIPU_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 1500)   # against hanging only: shared processors have been seen at a tenth of their vector speed
  endif()
  if(QUIPU_SANITIZE)
    math(EXPR ARG_TIMEOUT "5 * ${ARG_TIMEOUT}")   # instrumented code is that much slower
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
endfunction()

# quipu_fuzz_target(NAME SOURCES x_fuzz.cc LINKS ...): a libFuzzer binary; corpora live in tests/fuzz/corpus/NAME.
function(quipu_fuzz_target name)
  if(NOT QUIPU_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  if(NOT TARGET fuzzers)
    add_custom_target(fuzzers)   # all of them and what they need, nothing else
  endif()
  add_dependencies(fuzzers ${name})
endfunction()
