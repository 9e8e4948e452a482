// What the compiler's stand-in hands to the driver's in the place of machine code: a head of fixed length, then the
// source.
#pragma once

#include <cstdio>
#include <cstring>
#include <string>

struct Image {
    static constexpr size_t HEAD = 64;
    static constexpr const char* MAGIC = "// stand-in for machine code, ";

    std::string architecture;
    size_t bytes = 0;  // with the head

    std::string head() const {
        std::string text = MAGIC + architecture + ", " + std::to_string(bytes) + " bytes";
        text.resize(HEAD - 1, ' ');
        return text + "\n";
    }

    // From the beginning of an image; false if it is none.
    bool read(const char* image) {
        if (strncmp(image, MAGIC, strlen(MAGIC))) return false;
        char name[16] = "";
        const std::string rest(image + strlen(MAGIC), HEAD - strlen(MAGIC));
        if (sscanf(rest.c_str(), "%15[^,], %zu bytes", name, &bytes) != 2 || bytes < HEAD) return false;
        architecture = name;
        return true;
    }
};
