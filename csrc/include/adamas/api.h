/* What a program that links the library may use is marked ADAMAS_API; all else is hidden. */
#ifndef ADAMAS_API_H
#define ADAMAS_API_H

#ifdef ADAMAS_STATIC /* set by the CMake target of a static library, which exports nothing */
#define ADAMAS_API
#define ADAMAS_HIDDEN
#else
#define ADAMAS_API __attribute__((visibility("default")))
#define ADAMAS_HIDDEN __attribute__((visibility("hidden"))) /* inside of what is visible */
#endif

#endif
