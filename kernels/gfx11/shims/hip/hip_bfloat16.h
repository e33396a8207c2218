// <hip/hip_bfloat16.h>: the older name of the same type.
#pragma once
#include "hip_bf16.h"
typedef __hip_bfloat16 hip_bfloat16;
