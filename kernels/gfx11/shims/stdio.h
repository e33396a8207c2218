// Nothing is printed here: a call is refused when it is compiled.
#pragma once
