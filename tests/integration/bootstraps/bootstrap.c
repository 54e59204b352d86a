/* A compiled bootstrap without libraries: it answers each invocation with the number of bytes of its event. */
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ID_SIZE = 256 };

static FILE *from_api, *to_api;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* The connection is kept: one is enough for the life of the process. */
static void connect_to(char *address) {
    char *port = strchr(address, ':');
    struct addrinfo *found, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    if (port == NULL) fail("AWS_LAMBDA_RUNTIME_API");
    *port++ = '\0';
    if (getaddrinfo(address, port, &hints, &found) != 0) fail("getaddrinfo");
    int connection = socket(found->ai_family, found->ai_socktype, 0);
    if (connect(connection, found->ai_addr, found->ai_addrlen) != 0) fail("connect");
    freeaddrinfo(found);
    from_api = fdopen(connection, "r");
    to_api = fdopen(dup(connection), "w");
    if (from_api == NULL || to_api == NULL) fail("fdopen");
}

/* Reads one answer: its status, its request id if it has one, and its body, which the caller frees. */
static int answer(char *id, char **body, size_t *size) {
    char line[4096];
    int status = 0;
    *size = 0;
    if (fgets(line, sizeof line, from_api) == NULL || sscanf(line, "HTTP/1.1 %d", &status) != 1) fail("answer");
    while (fgets(line, sizeof line, from_api) != NULL && strcmp(line, "\r\n") != 0) {
        line[strcspn(line, "\r\n")] = '\0';
        if (strncasecmp(line, "Content-Length: ", 16) == 0) *size = strtoul(line + 16, NULL, 10);
        if (strncasecmp(line, "Lambda-Runtime-Aws-Request-Id: ", 31) == 0) snprintf(id, ID_SIZE, "%.255s", line + 31);
    }
    *body = calloc(*size + 1, 1);
    if (*body == NULL || fread(*body, 1, *size, from_api) != *size) fail("body");
    return status;
}

static void post(const char *id, const char *what, const char *error_type, const char *body) {
    char unused[ID_SIZE], *said;
    size_t size;
    fprintf(to_api, "POST /2018-06-01/runtime/invocation/%s/%s HTTP/1.1\r\nHost: localhost\r\n", id, what);
    if (error_type != NULL) fprintf(to_api, "Lambda-Runtime-Function-Error-Type: %s\r\n", error_type);
    fprintf(to_api, "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
    fflush(to_api);
    if (answer(unused, &said, &size) != 202) fail("post");
    free(said);
}

int main(void) {
    char id[ID_SIZE] = "", reply[512], *event;
    size_t size;
    connect_to(getenv("AWS_LAMBDA_RUNTIME_API"));
    for (;;) {
        fputs("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: localhost\r\n\r\n", to_api);
        fflush(to_api);
        if (answer(id, &event, &size) != 200) fail("next");
        if (strstr(event, "ZmFpbA==") != NULL) /* "fail" */
            post(id, "error", "Compiled.Fault", "{\"errorMessage\":\"the record says so: \xc3\xbc\",\"errorType\":\"\"}");
        else if (strstr(event, "ZXhpdA==") != NULL) /* "exit" */
            exit(3);
        else {
            snprintf(reply, sizeof reply, "{\"bytes\":%zu,\"requestId\":\"%s\"}", size, id);
            post(id, "response", NULL, reply);
        }
        free(event);
    }
}
