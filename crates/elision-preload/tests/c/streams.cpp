// C++ streams: what they read stays what it was when the file is changed through another stream, or by its path.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

int main(int, char **arguments) {
    const char *path = arguments[1];
    std::string made;
    for (int i = 0; made.size() < 300000; i++)
        made += std::to_string(i) + ' ';
    std::ofstream(path, std::ios::binary) << made;

    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    std::string bytes(made.size(), '\0');
    file.read(&bytes[0], bytes.size());
    std::cout << file.gcount() << ' ' << (bytes == made) << '\n';
    file.clear();
    file.seekp(5000);
    file << "changed" << std::flush;
    std::cout << file.good() << ' ' << (bytes == made) << '\n';
    bytes[9000] = '#';
    file.seekp(0);
    file.write(bytes.data(), bytes.size());
    file.close();

    std::ifstream again(path, std::ios::binary);
    std::string all{std::istreambuf_iterator<char>(again), std::istreambuf_iterator<char>()};
    std::cout << (all == bytes) << ' ' << all[9000] << '\n';
    again.clear();
    again.seekg(4096);
    std::string rest(made.size() - 4096, '\0');
    again.read(&rest[0], rest.size());
    std::ofstream(path, std::ios::binary | std::ios::app) << "appended";
    std::ofstream(path, std::ios::binary) << "short";
    std::cout << (rest == bytes.substr(4096)) << '\n';
    std::ifstream last(path);
    std::getline(last, all);
    std::cout << all << '\n';
}
