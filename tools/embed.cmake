# Writes OUTPUT, a C file with one string fl_cuda_source_<name> for each file <name>.cu, or .hpp, of INPUTS.
set(text "")
foreach(input IN LISTS INPUTS)
  get_filename_component(name ${input} NAME_WE)
  file(READ ${input} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND text "extern const char fl_cuda_source_${name}[];\nconst char fl_cuda_source_${name}[] = {${bytes}0};\n")
endforeach()
file(WRITE ${OUTPUT} "${text}")
