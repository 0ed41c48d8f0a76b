/* A C program that runs the check, linked with the shared library or with the archive. */
int threadline_check(void);

int main(void) { return threadline_check(); }
