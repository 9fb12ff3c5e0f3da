// Counts the lines of a file. A buffer is freed with its owner.
//
//     count FILE
#include <elision.h>

#include <algorithm>
#include <cerrno>
#include <iostream>
#include <memory>
#include <string_view>
#include <system_error>

struct free_buffer {
    void operator()(elision_buffer *buffer) const noexcept { elision_buffer_free(buffer); }
};
using buffer = std::unique_ptr<elision_buffer, free_buffer>;

static buffer read(const char *path)
{
    buffer read{elision_read(path)};
    if (!read)
        throw std::system_error(errno, std::generic_category(), path);
    return read;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        std::cerr << "usage: count FILE\n";
        return 2;
    }
    try {
        const buffer text = read(argv[1]);
        const std::string_view bytes{reinterpret_cast<const char *>(elision_buffer_data(text.get())),
                                     elision_buffer_len(text.get())};
        std::cout << std::count(bytes.begin(), bytes.end(), '\n') << '\n';
    } catch (const std::system_error &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
