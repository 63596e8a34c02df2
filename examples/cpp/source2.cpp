#include <iostream>

int main() {
    std::cout << "build2" << std::endl;
}
