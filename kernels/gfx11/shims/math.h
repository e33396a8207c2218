#pragma once
#include "algorithm"
