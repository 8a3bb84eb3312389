/* Prints the addresses of a name, one a line, as the C library that it is built with finds them. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **arguments)
{
    struct addrinfo wanted = { .ai_socktype = SOCK_STREAM }, *found;
    int failed = count == 2 ? getaddrinfo(arguments[1], NULL, &wanted, &found) : EAI_NONAME;
    if (failed) {
        printf("%s\n", gai_strerror(failed));
        return 1;
    }
    for (struct addrinfo *one = found; one; one = one->ai_next) {
        char text[256];
        if (!getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST))
            printf("%s\n", text);
    }
    return 0;
}
