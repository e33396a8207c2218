// memcpy and memset, which clang expands.
#pragma once
#include "hip/hip_runtime.h"
#define memcpy __builtin_memcpy
#define memset __builtin_memset
